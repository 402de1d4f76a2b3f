// grad_tile
