// finish_rows
