"""Where profiles are read from: each module gives the documents that a filter asks for, newest first, as JSON has them."""
