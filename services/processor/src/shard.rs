//! One shard and its thread.
//!
//! ```text
//!              ┌──────────────────── retry after a wait ────────────────────┐
//!              ▼                                                            │
//!  Created ─► Opening ─► Running ◄─► LogAway        error ─► BackingOff ────┤
//!                          │  │                     error ─► Halted ────────┘
//!                          │  └─ duty: delete ─► Deleting ─┐   (store mended, or another duty)
//!                          └─ lease released ─► HandingOver ┴─► Closed
//! ```
//!
//! `state` has the table of all transitions, which the thread is checked against, and says what
//! each state means. To hold, to be muted and to replay are no states: they are the orders that a
//! running shard follows.
//!
//! | file | what it does |
//! | --- | --- |
//! | `thread` | the loop: opens, runs rounds, decides what follows an error |
//! | `state` | the states and their transitions |
//! | `open` | restores, opens and claims the shard |
//! | `claim` | makes this process the owner, and finds out what the former owner said last |
//! | `task` | one round: reads, applies, commits, publishes |
//! | `task/checkpoints` | checkpoints for replays and for the store |
//! | `status` | what the shard says on the status topic |
//! | `close` | hands over, abandons, deletes |

mod claim;
mod close;
mod open;
mod rate;
mod state;
mod status;
mod task;
pub(crate) mod thread;
