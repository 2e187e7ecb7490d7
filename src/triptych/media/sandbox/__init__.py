"""Media read and decoded in processes of their own, which may crash, hang or swell without harm to the server."""
