//! Memberships of groups and workspaces, and of principals.

use edge::hierarchy::{self, Hierarchy};
use edge::holder::Holder;
use edge::layer::Call;
use edge::violations::Violations;
use edge::{request, status};
use model::{NamespaceId, Principal, Reference, ResourceId};
use proto::access::v1 as access;
use proto::directory::v1 as pb;
use proto::namespace;
use sqlx::PgPool;
use tonic::Status;

use super::path_of;
use crate::order::{Direction, Order};
use crate::page::Page;
use crate::query::from_above::{self, List};
use crate::query::members::{self, MemberRow, OfPrincipal};
use crate::query::visible;

/// Those that count in a group or workspace, and those that they override.
pub(super) async fn list(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListMembershipsRequest,
) -> Result<pb::ListMembershipsResponse, Status> {
    let id: NamespaceId = call.id("namespace_id", "group or a workspace")?;
    let place = call.place()?;
    let mut violations = Violations::default();
    let holder = match &message.principal {
        Some(principal) => violations
            .nested("principal", Holder::read(principal))
            .map(Some),
        None => Some(None),
    };
    let role = violations.check("role", role(message.role));
    let order = Order::read_named("principal", &message.order_by);
    let order = violations.check("order_by", order);
    let (holder, role, order) = violations.finish(|| Some((holder?, role?, order?)))?;
    let principal = match holder {
        Some(holder) => named(pool, call, holder).await?.to_string(),
        None => String::new(),
    };
    let query = (
        "memberships",
        id.to_string(),
        message.exclude_inherited,
        (&principal, &role),
    );
    let page = List::page(order, (message.page_size, &message.page_token), &query)?;
    let nodes = place.nodes.iter().map(|node| node.id.to_string());
    let most = if message.exclude_inherited {
        1
    } else {
        usize::MAX
    };
    let list = List {
        places: &nodes.take(most).collect::<Vec<_>>(),
        narrowed_to: [&principal, &role],
        order,
    };
    let rows = from_above::list(pool, &members::inherited(), &list, &page).await;
    let (rows, next_page_token) = rows.map_err(|error| status::database(&error))?;
    let memberships = rows
        .into_iter()
        .map(|row: MemberRow| listed(&path_of(place, &row.namespace_id), row));
    Ok(pb::ListMembershipsResponse {
        memberships: memberships.collect::<Result<_, _>>()?,
        next_page_token,
    })
}

/// Those that a principal has wherever the caller sees.
pub(super) async fn of_principal(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListPrincipalMembershipsRequest,
) -> Result<pb::ListPrincipalMembershipsResponse, Status> {
    let mut violations = Violations::default();
    let given = violations.required("principal", message.principal.as_ref());
    let holder = given.and_then(|given| violations.nested("principal", Holder::read(given)));
    let role = violations.check("role", role(message.role));
    let direction = Direction::read("create_time", &message.order_by);
    let direction = violations.check("order_by", direction);
    let (holder, role, direction) = violations.finish(|| Some((holder?, role?, direction?)))?;
    let direction = direction.unwrap_or_default();
    let principal = named(pool, call, holder).await?.to_string();
    let query = ("memberships of a principal", &principal, &role, direction);
    let page = Page::read(message.page_size, &message.page_token, &query, 1)?;
    let database = |error| status::database(&error);
    let visible = visible::to(pool, call).await.map_err(database)?;
    let list = OfPrincipal {
        principal: &principal,
        role: &role,
        visible: &visible,
        direction,
        after: page.after.as_ref().map(|key| key[0].as_str()),
        limit: page.limit(),
    };
    let mut rows = members::of_principal(pool, &list).await.map_err(database)?;
    let next_page_token = page.cut(&mut rows, |placed| vec![placed.row.id.clone()]);
    let memberships = rows
        .into_iter()
        .map(|placed| listed(placed.path.trim_end_matches('/'), placed.row));
    Ok(pb::ListPrincipalMembershipsResponse {
        memberships: memberships.collect::<Result<_, _>>()?,
        next_page_token,
    })
}

/// Whom a request means. One that it names by id need not be there; nor does what is said of it tell whether it is.
async fn named(pool: &PgPool, call: &Call, holder: Holder) -> Result<Principal, Status> {
    if let Holder::Resource { reference, .. } = &holder {
        match reference {
            Reference::Id(ResourceId::Team(id)) => return Ok(Principal::Team(*id)),
            Reference::Id(ResourceId::ServiceAccount(id)) => {
                return Ok(Principal::ServiceAccount(*id));
            }
            _ => {}
        }
    }
    let known = holder
        .find(&Hierarchy::new(pool.clone()), &call.caller)
        .await?;
    if known.is_hidden() && !call.caller.administrator {
        return Err(status::not_found(&known.named));
    }
    Ok(known.principal)
}

/// The number of a role, as text; empty for all.
fn role(number: i32) -> Result<String, &'static str> {
    match access::Role::try_from(number) {
        Ok(access::Role::Unspecified) => Ok(String::new()),
        Ok(_) => Ok(number.to_string()),
        Err(_) => Err("must be a known role, or not set"),
    }
}

/// A membership at the path of its group or workspace.
fn listed(path: &str, row: MemberRow) -> Result<pb::DirectoryMembership, Status> {
    let principal: Principal = row
        .principal
        .parse()
        .map_err(|error| status::internal(&error))?;
    let membership = namespace::v1::Membership {
        trn: format!("trn:membership:{path}/{}", row.id),
        id: row.id,
        namespace_id: row.namespace_id,
        principal: Some(hierarchy::wire_principal(&principal)),
        role: row.role,
        etag: request::etag(row.version.cast_unsigned()),
        create_time: Some(request::timestamp(row.created_at)),
        update_time: Some(request::timestamp(row.updated_at)),
    };
    Ok(pb::DirectoryMembership {
        membership: Some(membership),
        inherited: row.distance > 0,
        namespace_path: path.to_owned(),
        overridden_by: row.overridden_by,
    })
}
