"""One folder per backend behind one protocol (protocols.Runtime); each is imported only when it is used."""
