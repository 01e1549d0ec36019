"""The page: Gradio only. It knows one object, `studio.service.Studio`, and keeps nothing that matters itself."""
