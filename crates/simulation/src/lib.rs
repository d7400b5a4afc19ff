//! Orders of eviction over generated requests, without a byte stored: what `larder bench` compares, and
//! what the store is held against by its tests.
//!
//! - [`trace`]: requests, made up from a seed;
//! - [`orders`]: ours, and published ones.

pub mod orders;
pub mod trace;

pub use orders::Order;
pub use trace::{Kind, Trace};
