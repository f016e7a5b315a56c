//! What to enter in a cloud, and what stands in the way there.

use edge::authorization::locate;
use edge::hierarchy::Place;
use edge::layer::Call;
use proto::identity::v1 as pb;
use tonic::{Request, Response, Status};

use super::IdentityRpc;
use crate::domain::managed_identity::{Configuration, Rejection, State};
use crate::domain::setup;
use crate::setup::instructions;

const ACCOUNT_GONE: &str = "the service account does not exist any more; choose another one";

impl IdentityRpc {
    pub(super) async fn setup(
        &self,
        request: Request<pb::GetSetupInstructionsRequest>,
    ) -> Result<Response<pb::GetSetupInstructionsResponse>, Status> {
        let call = Call::of(&request)?;
        let place = call.place()?;
        let (_, loaded) = self.load("id", place).await?;
        // The cloud sees no alias: its tokens are its source's.
        let identity = match &loaded.state {
            State::Live(identity) => identity,
            State::Alias(alias) => &self.source(alias).await?,
            State::Absent | State::Deleted => return Err(Rejection::Missing.into()),
        };
        let account = self.account(&call, &identity.configuration).await?;
        let gone =
            matches!(identity.configuration, Configuration::Tharsis { .. }) && account.is_none();
        // What an alias's source stands for lies elsewhere; whoever sees the alias may not know where.
        let shown = account.filter(|it| it.role.is_some() || place.is_in_reach_of(it));
        let mut instructions = instructions(&self.issuer_url, identity, shown.as_ref())?;
        instructions.warnings = self.warnings(&identity.configuration);
        if gone {
            instructions.warnings.push(ACCOUNT_GONE.to_owned());
        }
        Ok(Response::new(pb::GetSetupInstructionsResponse {
            setup_instructions: Some(instructions),
        }))
    }

    /// Where the service account is that an identity stands for.
    async fn account(
        &self,
        call: &Call,
        configuration: &Configuration,
    ) -> Result<Option<Place>, Status> {
        match configuration {
            Configuration::Tharsis { account } => {
                locate(&self.hierarchy, (*account).into(), &call.caller).await
            }
            _ => Ok(None),
        }
    }

    /// Why a cloud would not take the tokens as things are.
    pub(super) fn warnings(&self, configuration: &Configuration) -> Vec<String> {
        let warnings = setup::warnings(&self.issuer_url, configuration);
        warnings.iter().map(ToString::to_string).collect()
    }
}
