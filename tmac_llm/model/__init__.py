"""The decoder of the Llama and BitNet families: numpy around table-lookup linears; knows no files, no text."""
