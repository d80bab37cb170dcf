//! HTTP/1 as a server speaks it, for the client's side: the guard says where messages begin and end, and
//! this makes requests of them, hands their bodies over as they are wanted, and writes the answers.
//!
//! Our own, because a general server parses what the guard has parsed already and keeps for every
//! client what few ever need: it cost a quarter of a request's instructions. `request` and `response`
//! know bytes and no I/O; `body` is what passes between the connection and whoever reads a request's
//! body; `connection` is the order of things.

mod body;
mod connection;
mod request;
mod response;

pub use self::request::parse;
pub use self::{
    body::Coming,
    connection::{Connection, End},
};
