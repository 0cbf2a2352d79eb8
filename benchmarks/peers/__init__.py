"""The same work in PyTorch, librosa or scikit-learn, written as their users would."""
