"""Rebuilds the embedded emoji model: pictures, autoencoder, denoiser, CLIP and card."""
