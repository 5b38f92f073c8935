"""Oxford-IIIT Pet and drawn pets in its layout: a folder of pictures, trimaps and lists."""
