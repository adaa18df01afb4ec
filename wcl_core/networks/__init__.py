"""Networks: backbones, batch normalisation over ranks, and the model that a method trains."""
