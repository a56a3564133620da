"""What samples synthetic images: the split's own diffusion model, pretrained pipelines, folders."""
