"""What a trained model is used for: prediction, export, decisions."""
