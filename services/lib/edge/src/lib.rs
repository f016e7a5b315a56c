//! What every gRPC server of ours needs around its own rpcs: settings, authentication, authorization, error details,
//! health, reflection, drain, telemetry. Nothing here knows a service's own rules.

pub mod access_rules;
pub mod aggregate;
pub mod aliases;
pub mod arguments;
pub mod assignments;
pub mod attestation;
pub mod authentication;
pub mod authorization;
pub mod caller;
pub mod channel;
pub mod clock;
pub mod command;
pub mod consistency;
mod files;
mod frames;
mod guests;
pub mod health;
pub mod hierarchy;
pub mod holder;
pub mod host;
pub mod http1;
pub mod inheritance;
pub mod initial_assignments;
pub mod layer;
pub mod limits;
pub mod masks;
pub mod metrics;
pub mod naming;
pub mod past;
pub mod rate;
pub mod request;
pub mod roles;
pub mod rpc;
pub mod server;
pub mod settings;
pub mod shutdown;
pub mod status;
pub mod telemetry;
pub mod texts;
pub mod trust;
pub mod violations;

pub use settings::Settings;

// It gives out what was freed last, which is warm still.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
