// teca
