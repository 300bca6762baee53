"""The studio: a web page to brush masks and watch methods race, and its HTTP API.

Example:
    service = Service({"mine": TorchFiller("mine", "mine", inpainter)}, StudioOptions())
    app = create_app(service)                          # ASGI; `rad studio` serves it with uvicorn
"""
