//! Where everything lies in Valkey.
//!
//! All keys begin with the prefix in braces, so that they are in one slot of a
//! cluster and a script may touch any of them. Names of goldens and nodes have
//! no colon. Times are microseconds since 1970.
//!
//! ```text
//! {prefix}:layout                   string  version of this layout
//! {prefix}:instances                hash    instance id -> record (JSON, with its version)
//! {prefix}:of:<node>                set     ids of all the node's records
//! {prefix}:changed:<node>           set     ids of those changed or removed since the node read them
//! {prefix}:read:<node>              string  the mark of that reading
//! {prefix}:ready:<golden>:<node>    zset    created_at -> id; the pool, popped at its low end
//! {prefix}:pools:<golden>           set     nodes that may have ready ones of it
//! {prefix}:due:<node>               zset    expires_at -> id; not of records in a final state
//! {prefix}:counts:<golden>:<node>   hash    state -> how many
//! {prefix}:keys                     hash    idempotency key -> id, while the instance is somebody's
//! {prefix}:claims:<ticket>          hash    id and generation of a claim; gone after some minutes
//! {prefix}:node:<node>              string  the daemon that has this name; gone when it is silent
//! {prefix}:reports                  hash    node -> what it says of itself (JSON, with its version)
//! {prefix}:reported                 zset    a number that grows -> node, in the order of the reports
//! {prefix}:spoke                    zset    when it last spoke, by the server's clock -> node
//! {prefix}:beats                    hash    node -> what it said then, another word each time
//! {prefix}:closed                   set     nodes whose ready ones are for nobody now
//! {prefix}:lost                     hash    node -> when its instances were first marked as lost
//! {prefix}:marked                   hash    node -> its beat when all of them were
//! {prefix}:ended                    zset    time -> id, of instances that were somebody's; a day, 16,384 at most
//! {prefix}:acquires:<client>        zset    time -> ticket; counted acquires of a client
//! {prefix}:ping                     string  proves that the server takes writes
//! ```
//!
//! Only the scripts touch them. [`super`] puts `lib.lua` before each: it has the
//! indices of a record in one place.

use std::fmt;

/// The version of the layout above.
pub(super) const LAYOUT: u64 = 1;

/// What all keys begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base(String);

impl Base {
    /// The base below a STORE_PREFIX, which the settings have checked.
    pub(super) fn new(prefix: &str) -> Self {
        Self(format!("{{{prefix}}}:"))
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
