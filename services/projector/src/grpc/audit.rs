//! Jobs, credentials, and everything that anyone did.

use std::str::FromStr;

use edge::hierarchy::{Hierarchy, Place};
use edge::layer::Call;
use edge::violations::Violations;
use edge::{request, status};
use model::principal::InvalidPrincipal;
use model::{JobId, Kind, ManagedIdentityId, Principal, ResourceId, ServiceAccountId, WorkspaceId};
use prost::{DecodeError, Message as _};
use prost_types::{Duration, Timestamp};
use proto::directory::v1 as pb;
use proto::directory::v1::audit_service_server::AuditService;
use proto::issuer;
use sqlx::PgPool;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::{DirectoryRpc, expect};
use crate::order::Direction;
use crate::page::Page;
use crate::query::activities::{Activities, ActivityRow, Of};
use crate::query::credentials::{By, CredentialRow, Credentials};
use crate::query::jobs::{self, JobRow, Jobs};
use crate::query::visible::{self, Range};
use crate::{activity, order};

/// Time, and what tells apart what happened at the same time.
const KEYS: usize = 2;

#[tonic::async_trait]
impl AuditService for DirectoryRpc {
    async fn list_jobs(
        &self,
        request: Request<pb::ListJobsRequest>,
    ) -> Result<Response<pb::ListJobsResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = list_jobs(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn list_credentials(
        &self,
        request: Request<pb::ListCredentialsRequest>,
    ) -> Result<Response<pb::ListCredentialsResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = list_credentials(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn list_activities(
        &self,
        request: Request<pb::ListActivitiesRequest>,
    ) -> Result<Response<pb::ListActivitiesResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = list_activities(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }
}

async fn list_jobs(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListJobsRequest,
) -> Result<pb::ListJobsResponse, Status> {
    let mut violations = Violations::default();
    let stage = issuer::v1::Stage::try_from(message.stage);
    let stage = stage.map_err(|_| "must be a known stage, or not set");
    let stage = violations.check("stage", stage);
    if !message.principal.is_empty() {
        violations.check("principal", message.principal.parse::<Principal>());
    }
    if call.place.is_some() && !message.workspace_id.is_empty() {
        violations.add("workspace_id", "must not be set beside parent_id");
    }
    let start = moment(&mut violations, "start_time", message.start_time.as_ref());
    let end = moment(&mut violations, "end_time", message.end_time.as_ref());
    let direction = direction(&mut violations, "create_time", &message.order_by);
    let checked = violations.finish(|| Some((stage?, start?, end?, direction?)));
    let (stage, start, end, direction) = checked?;
    let unpaged = pb::ListJobsRequest {
        page_size: 0,
        page_token: String::new(),
        consistency_token: String::new(),
        ..message.clone()
    };
    let query = ("jobs", format!("{unpaged:?}"));
    let page = Page::read(message.page_size, &message.page_token, &query, KEYS)?;
    let after = after(&page, |id| Some(id.to_owned()))?;
    let list = Jobs {
        of: whose_jobs(pool, call, &message.workspace_id).await?,
        stage: stage.into(),
        principal: &message.principal,
        start,
        end,
        direction,
        after: after.as_ref().map(|(at, id)| (*at, id.as_str())),
        limit: page.limit(),
    };
    let rows = list.list(pool).await;
    let mut rows = rows.map_err(|error| status::database(&error))?;
    let next_page_token = page.cut(&mut rows, |row| {
        vec![order::moment(row.created_at), row.id.clone()]
    });
    let jobs = rows.into_iter().map(job).collect::<Result<_, _>>();
    Ok(pb::ListJobsResponse {
        jobs: jobs.map_err(|error| status::internal(&error))?,
        next_page_token,
    })
}

/// Those of the workspace that the request names, of the parent, or of everything that the caller may see.
async fn whose_jobs(pool: &PgPool, call: &Call, workspace: &str) -> Result<jobs::Of, Status> {
    if !workspace.is_empty() {
        return Ok(jobs::Of::Workspace(
            workspace_named(pool, call, workspace).await?,
        ));
    }
    let Some(place) = &call.place else {
        let visible = visible_to(pool, call).await?;
        return Ok(visible.map_or(jobs::Of::All, jobs::Of::Ranges));
    };
    match place.id().kind() {
        Kind::Group => Ok(jobs::Of::Ranges(vec![Range::of(place)])),
        Kind::Workspace => Ok(jobs::Of::Workspace(place.id().to_string())),
        _ => Err(Violations::of("parent_id", "must name a group or a workspace").into_status()),
    }
}

/// The id of a workspace that the caller may see. One that is gone is named by its id, and seen by whoever may see what
/// was above it.
async fn workspace_named(pool: &PgPool, call: &Call, named: &str) -> Result<String, Status> {
    const FIELD: &str = "workspace_id";
    let hierarchy = Hierarchy::new(pool.clone());
    let place = call.permitted(&hierarchy, call.permission, FIELD, named);
    let refusal = match place.await {
        Ok(place) => return Ok(expect(&place, Kind::Workspace, FIELD)?.to_string()),
        Err(refusal) => refusal,
    };
    if let Ok(id) = named.parse::<WorkspaceId>() {
        let database = |error: sqlx::Error| status::database(&error);
        let ranges = visible::to(pool, call).await.map_err(database)?;
        let id = id.to_string();
        if visible::sees(pool, &ranges, &id).await.map_err(database)? {
            return Ok(id);
        }
    }
    Err(refusal)
}

async fn list_credentials(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListCredentialsRequest,
) -> Result<pb::ListCredentialsResponse, Status> {
    let mut violations = Violations::default();
    let start = moment(&mut violations, "start_time", message.start_time.as_ref());
    let end = moment(&mut violations, "end_time", message.end_time.as_ref());
    // Whoever orders by either means when it happened; but an `iat` has no fractions, and would not tell.
    let order_by = message.order_by.replacen("issue_time", "record_time", 1);
    let direction = direction(&mut violations, "record_time", &order_by);
    let issued = match pb::CredentialOutcome::try_from(message.outcome) {
        Ok(pb::CredentialOutcome::Unspecified) => None,
        Ok(outcome) => Some(outcome == pb::CredentialOutcome::Issued),
        Err(_) => {
            violations.add("outcome", "must be a known outcome, or not set");
            None
        }
    };
    let by = told_apart_by(&mut violations, message);
    let (start, end, direction) = violations.finish(|| Some((start?, end?, direction?)))?;
    let unpaged = pb::ListCredentialsRequest {
        page_size: 0,
        page_token: String::new(),
        consistency_token: String::new(),
        ..message.clone()
    };
    let query = ("credentials", format!("{unpaged:?}"));
    let page = Page::read(message.page_size, &message.page_token, &query, KEYS)?;
    let after = after(&page, |position| position.parse().ok())?;
    let (parent, visible) = whose_credentials(pool, call).await?;
    let of_parent = parent.as_ref().map(|(by, id)| (*by, id.as_str()));
    let list = Credentials {
        by: of_parent.into_iter().chain(by).collect(),
        start,
        end,
        visible: visible.as_deref(),
        issued,
        direction,
        after,
        limit: page.limit(),
    };
    let rows = list.list(pool).await;
    let mut rows = rows.map_err(|error| status::database(&error))?;
    let next_page_token = page.cut(&mut rows, |row| {
        vec![order::moment(row.recorded_at), row.position.to_string()]
    });
    Ok(pb::ListCredentialsResponse {
        credentials: rows.into_iter().map(credential).collect(),
        next_page_token,
    })
}

/// What the request asks for, by ids of what may be gone.
fn told_apart_by<'a>(
    violations: &mut Violations,
    message: &'a pb::ListCredentialsRequest,
) -> Vec<(By, &'a str)> {
    fn check<T: FromStr>(violations: &mut Violations, field: &str, id: &str, kind: Kind) {
        if !id.is_empty() && id.parse::<T>().is_err() {
            violations.add(field, format!("must be the id of a {kind}"));
        }
    }
    let (identity, job) = (&message.managed_identity_id, &message.job_id);
    let (workspace, account) = (&message.workspace_id, &message.service_account_id);
    let identity_field = "managed_identity_id";
    check::<ManagedIdentityId>(violations, identity_field, identity, Kind::ManagedIdentity);
    check::<JobId>(violations, "job_id", job, Kind::Job);
    check::<WorkspaceId>(violations, "workspace_id", workspace, Kind::Workspace);
    let account_field = "service_account_id";
    check::<ServiceAccountId>(violations, account_field, account, Kind::ServiceAccount);
    let given = [
        (By::Token, &message.token_id),
        (By::Key, &message.kid),
        (By::ManagedIdentity, identity),
        (By::Job, job),
        (By::Place, workspace),
        (By::ServiceAccount, account),
    ];
    let given = given.into_iter().filter(|(_, value)| !value.is_empty());
    given.map(|(by, value)| (by, value.as_str())).collect()
}

/// Those of the parent, if the request has one, and as far as the caller may see them.
async fn whose_credentials(
    pool: &PgPool,
    call: &Call,
) -> Result<(Option<(By, String)>, Option<Vec<Range>>), Status> {
    let Some(place) = &call.place else {
        return Ok((None, visible_to(pool, call).await?));
    };
    let of = |by| Some((by, place.id().to_string()));
    // Whoever sees a parent sees its credentials; but an identity has some of workspaces that lie elsewhere now.
    match place.id().kind() {
        Kind::Group => Ok((None, Some(vec![Range::of(place)]))),
        Kind::Workspace => Ok((of(By::Place), None)),
        Kind::Job => Ok((of(By::Job), None)),
        Kind::ServiceAccount => Ok((of(By::ServiceAccount), None)),
        Kind::ManagedIdentity => Ok((of(By::ManagedIdentity), visible_to(pool, call).await?)),
        _ => {
            let wrong =
                "must name a group, a workspace, a managed identity, a service account or a job";
            Err(Violations::of("parent_id", wrong).into_status())
        }
    }
}

async fn list_activities(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListActivitiesRequest,
) -> Result<pb::ListActivitiesResponse, Status> {
    let mut violations = Violations::default();
    let start = moment(&mut violations, "start_time", message.start_time.as_ref());
    let end = moment(&mut violations, "end_time", message.end_time.as_ref());
    if !message.actor.is_empty() {
        violations.check("actor", actor(&message.actor));
    }
    if !message.affected_id.is_empty() {
        let affected = violations.check("affected_id", message.affected_id.parse::<ResourceId>());
        refuse_rules(&mut violations, "affected_id", affected);
    }
    let place = call.place.as_ref().map(Place::id);
    refuse_rules(&mut violations, "resource_id", place);
    let direction = direction(&mut violations, "time", &message.order_by);
    let (start, end, direction) = violations.finish(|| Some((start?, end?, direction?)))?;
    let unpaged = pb::ListActivitiesRequest {
        page_size: 0,
        page_token: String::new(),
        consistency_token: String::new(),
        ..message.clone()
    };
    let query = ("activities", format!("{unpaged:?}"));
    let page = Page::read(message.page_size, &message.page_token, &query, KEYS)?;
    let list = Activities {
        actor: &message.actor,
        event_type: &message.event_type,
        affected: &message.affected_id,
        start,
        end,
        direction,
        after: after(&page, |number| number.parse().ok())?,
        limit: page.limit(),
    };
    let mut rows = activities(pool, call, &list, message.include_descendants).await?;
    let next_page_token = page.cut(&mut rows, |row| {
        vec![order::moment(row.at), row.id.to_string()]
    });
    Ok(pb::ListActivitiesResponse {
        activities: rows.into_iter().map(entry).collect(),
        next_page_token,
    })
}

/// Who is on the record: a principal, or a service of ours that did what followed from something else.
fn actor(text: &str) -> Result<(), InvalidPrincipal> {
    match text.strip_prefix("service:") {
        Some("namespace" | "identity" | "issuer") => Ok(()),
        _ => text.parse::<Principal>().map(drop),
    }
}

/// What happened to a rule happened to its identity.
fn refuse_rules(violations: &mut Violations, field: &str, id: Option<ResourceId>) {
    if id.is_some_and(|id| id.kind() == Kind::AccessRule) {
        let wrong = "must name something else: what happens to an access rule is on the record of its managed identity";
        violations.add(field, wrong);
    }
}

async fn activities(
    pool: &PgPool,
    call: &Call,
    list: &Activities<'_>,
    descendants: bool,
) -> Result<Vec<ActivityRow>, Status> {
    let visible;
    let range;
    let id;
    let of = match &call.place {
        None if call.caller.administrator => Of::Everything,
        None => {
            visible = visible_to(pool, call).await?.unwrap_or_default();
            Of::Ranges(&visible)
        }
        Some(place) => {
            id = place.id().to_string();
            match place.id().kind() {
                Kind::Group if descendants => {
                    range = [Range::of(place)];
                    Of::Ranges(&range)
                }
                Kind::Group | Kind::Workspace => Of::Place(&id),
                _ => {
                    let to_caller = visible::to(pool, call).await;
                    visible = to_caller.map_err(|error| status::database(&error))?;
                    Of::Thing(&id, &visible)
                }
            }
        }
    };
    let rows = list.list(pool, &of).await;
    rows.map_err(|error| status::database(&error))
}

/// What limits the rows; none if there is no limit.
async fn visible_to(pool: &PgPool, call: &Call) -> Result<Option<Vec<Range>>, Status> {
    if call.caller.administrator {
        return Ok(None);
    }
    let visible = visible::to(pool, call).await;
    visible.map(Some).map_err(|error| status::database(&error))
}

/// A bound, which what is recorded lies before or not: at a whole microsecond, as all of that does.
#[expect(
    clippy::option_option,
    reason = "none is a wrong one; some of none is none given"
)]
fn moment(
    violations: &mut Violations,
    field: &str,
    time: Option<&Timestamp>,
) -> Option<Option<OffsetDateTime>> {
    match time {
        None => Some(None),
        Some(time) => violations
            .merge(request::time(field, time))
            .map(|time| Some(order::next_moment(time))),
    }
}

/// The newest first, if the request leaves it open.
fn direction(violations: &mut Violations, name: &'static str, text: &str) -> Option<Direction> {
    let newest_first = Direction { descending: true };
    let direction = violations.check("order_by", Direction::read(name, text));
    direction.map(|direction| direction.unwrap_or(newest_first))
}

/// The time and the other key of a page token.
fn after<T>(
    page: &Page,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<(OffsetDateTime, T)>, Violations> {
    let Some(key) = &page.after else {
        return Ok(None);
    };
    match (order::time(&key[0]), read(&key[1])) {
        (Some(at), Some(other)) => Ok(Some((at, other))),
        _ => Err(Page::wrong_token()),
    }
}

fn job(row: JobRow) -> Result<issuer::v1::Job, DecodeError> {
    let trn = |path: String| format!("trn:job:{path}{}", row.id);
    let module = row.module.as_deref().map(issuer::v1::Module::decode);
    Ok(issuer::v1::Job {
        trn: row.workspace_path.map(trn).unwrap_or_default(),
        id: row.id,
        workspace_id: row.workspace_id,
        stage: row.stage,
        principal: row.principal,
        create_time: Some(request::timestamp(row.created_at)),
        opener: row.opener,
        expire_time: row.expires_at.map(request::timestamp),
        heartbeat_timeout: Some(Duration::decode(row.heartbeat_timeout.as_slice())?),
        module: module.transpose()?,
        ..Default::default()
    })
}

fn credential(row: CredentialRow) -> pb::Credential {
    pb::Credential {
        token_id: row.token_id,
        job_id: row.job_id,
        workspace_id: row.workspace_id,
        managed_identity_id: row.managed_identity_id,
        subject: row.subject,
        audience: row.audience,
        kid: row.kid,
        issue_time: Some(request::timestamp(row.issued_at)),
        expire_time: row.expires_at.map(request::timestamp),
        position: row.position.cast_unsigned(),
        refusal_reasons: row
            .reasons
            .split(',')
            .filter(|reason| !reason.is_empty())
            .map(str::to_owned)
            .collect(),
        service_account_id: row.service_account_id.unwrap_or_default(),
        stage: row.stage,
        revision: row.revision,
        requested_identity: row.requested_identity,
        record_time: Some(request::timestamp(row.recorded_at)),
    }
}

fn entry(row: ActivityRow) -> pb::Activity {
    let (log, position) = activity::event(row.id);
    pb::Activity {
        log: log.to_owned(),
        position,
        time: Some(request::timestamp(row.at)),
        actor: row.actor,
        event_type: row.event_type,
        resource_id: row.resource_id,
        namespace_id: row.place_id,
        managed_identity_id: row.managed_identity_id.unwrap_or_default(),
    }
}
