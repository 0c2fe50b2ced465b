"""What goes in and what comes out, by area. ``Body`` is what is sent, ``Schema`` what is answered."""
