"""The static demo: the page of the studio with a model that runs in the browser. Built by `python -m rad.studio.site`."""
