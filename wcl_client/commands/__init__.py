"""The commands of `wcl`, by what they are about; wcl_client.cli makes one program of them."""
