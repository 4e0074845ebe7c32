//! Objects of any kind, as a whole.

pub mod object_too_complex;
