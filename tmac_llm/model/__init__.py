"""The decoder of the Llama and BitNet families in numpy over table-lookup linears; knows no file formats and no text."""
