//! What to enter in a cloud, and what stands in the way there.

use edge::layer::Call;
use proto::identity::v1 as pb;
use tonic::{Request, Response, Status};

use super::IdentityRpc;
use crate::domain::managed_identity::{Configuration, Rejection, State};
use crate::domain::setup;
use crate::setup::instructions;

impl IdentityRpc {
    pub(super) async fn setup(
        &self,
        request: Request<pb::GetSetupInstructionsRequest>,
    ) -> Result<Response<pb::GetSetupInstructionsResponse>, Status> {
        let call = Call::of(&request)?;
        let (_, loaded) = self.load("id", call.place()?).await?;
        let State::Live(identity) = &loaded.state else {
            return Err(Rejection::Missing.into());
        };
        let mut instructions = instructions(&self.issuer_url, identity)?;
        instructions.warnings = self.warnings(&identity.configuration);
        Ok(Response::new(pb::GetSetupInstructionsResponse {
            setup_instructions: Some(instructions),
        }))
    }

    /// Why a cloud would not take the tokens as things are.
    pub(super) fn warnings(&self, configuration: &Configuration) -> Vec<String> {
        let warnings = setup::warnings(&self.issuer_url, configuration);
        warnings.iter().map(ToString::to_string).collect()
    }
}
