//! What may happen to groups, workspaces and memberships: pure deciders. What they lean on beyond their own stream
//! comes in with the command; the append checks that it still holds.

pub mod group;
pub mod membership;
pub mod workspace;

/// Names in a path, workspaces included.
pub const MAX_DEPTH: usize = 20;
/// Subgroups of a group, and workspaces of a group, each.
pub const MAX_CHILDREN: i64 = 1_000;
