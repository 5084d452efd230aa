"""Images of captioned shapes, judged off their pixels."""
