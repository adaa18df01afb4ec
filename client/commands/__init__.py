"""The commands of `wcl`, by what they are about; client.cli makes one program of them."""
