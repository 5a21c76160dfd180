//! setup
pub mod doctor;
