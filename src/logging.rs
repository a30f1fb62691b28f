//! Log lines in the layout of gnatsd.
