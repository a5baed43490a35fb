"""Images to captions to a text store, shard by shard and resumably."""
