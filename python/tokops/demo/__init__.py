"""The main job: a real model decodes after a real document, with stock transformers and with tokops."""
