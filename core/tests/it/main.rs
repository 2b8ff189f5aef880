//! The engine against a disk that crashes, lies and rots; against real threads; and against a plain `Vec`. The seam: its
//! contract.

mod contract;
mod crash;
mod damage;
mod harness;
mod model;
mod real;
mod sim;
mod sync;
