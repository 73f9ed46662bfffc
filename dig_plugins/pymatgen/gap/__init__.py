"""Band gaps of carbon crystals as torch functions of the structure: by tight binding, and learned."""
