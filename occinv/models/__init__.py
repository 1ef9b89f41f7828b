"""Every network: the ViT, decoder, heads, regressor and predictor, and the tokenizers."""
