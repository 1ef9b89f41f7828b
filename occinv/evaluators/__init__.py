"""What a trained model is worth: occlusion invariance, reconstruction, features."""
