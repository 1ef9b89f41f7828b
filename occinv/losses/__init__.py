"""Losses as pure functions of arrays. Each returns one value per image, token or pair."""
