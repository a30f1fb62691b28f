//! Bits every other module may use: buffers, clocks, random numbers, ids. Imports std only.
