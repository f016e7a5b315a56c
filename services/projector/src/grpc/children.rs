//! Groups and workspaces right below a group.

use edge::layer::Call;
use edge::violations::Violations;
use edge::{request, status};
use model::Kind;
use proto::directory::v1 as pb;
use proto::namespace;
use sqlx::PgPool;
use tonic::Status;

use super::{expect, keyed};
use crate::order::{Direction, Order};
use crate::page::Page;
use crate::query::namespaces::{self, Children, Members, NamespaceRow, WithIdentity};
use crate::query::visible;

/// Key and id.
const KEYS: usize = 2;

pub(super) async fn list(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListChildrenRequest,
) -> Result<pb::ListChildrenResponse, Status> {
    let (parent, path) = match &call.place {
        Some(place) => (
            expect(place, Kind::Group, "group_id")?.to_string(),
            place.path(),
        ),
        None => (String::new(), String::new()),
    };
    let mut violations = Violations::default();
    let kind = violations.check("kind", kind(message.kind));
    let order = violations.check("order_by", Order::read(&message.order_by));
    let (kind, order) = violations.finish(|| Some((kind?, order?)))?;
    let order = order.unwrap_or(Order::BY_NAME);
    let query = ("children", &parent, kind, order);
    let page = Page::read(message.page_size, &message.page_token, &query, KEYS)?;
    let after = keyed(&page, order)?;
    let at_the_top = call.place.is_none() && !call.caller.administrator;
    let members = if at_the_top {
        members(pool, call).await.map(Some)
    } else {
        Ok(None)
    };
    let members = members.map_err(|error| status::database(&error))?;
    let children = Children {
        parent: &parent,
        members: members.as_ref(),
        kind,
        order,
        after,
        limit: page.limit(),
    };
    let rows = namespaces::children(pool, &children).await;
    let mut rows = rows.map_err(|error| status::database(&error))?;
    let next_page_token = page.cut(&mut rows, |row| {
        let key = order.key(&row.name, row.created_at, row.updated_at);
        vec![key, row.id.clone()]
    });
    let below = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}/{name}")
        }
    };
    let children = rows
        .into_iter()
        .map(|row| child(below(&row.name), row))
        .collect();
    Ok(pb::ListChildrenResponse {
        children,
        next_page_token,
    })
}

async fn members(pool: &PgPool, call: &Call) -> sqlx::Result<Members> {
    let principals = visible::principals(pool, call).await?;
    Ok(match visible::reach(pool, call).await? {
        Some(within) => Members { principals, within },
        None => Members::default(),
    })
}

/// The workspaces that have an identity.
pub(super) async fn with_identity(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListManagedIdentityWorkspacesRequest,
) -> Result<pb::ListManagedIdentityWorkspacesResponse, Status> {
    let id = expect(call.place()?, Kind::ManagedIdentity, "managed_identity_id")?.to_string();
    let direction = Direction::read("create_time", &message.order_by)
        .map_err(|error| Violations::of("order_by", error))?;
    let direction = direction.unwrap_or_default();
    let name_contains = message.name_contains.to_ascii_lowercase();
    let query = ("workspaces", &id, &name_contains, direction);
    let page = Page::read(message.page_size, &message.page_token, &query, 1)?;
    let database = |error| status::database(&error);
    let visible = visible::to(pool, call).await.map_err(database)?;
    let list = WithIdentity {
        identity: &id,
        name_contains: &name_contains,
        visible: &visible,
        direction,
        after: page.after.as_ref().map(|key| key[0].as_str()),
        limit: page.limit(),
    };
    let mut rows = namespaces::with_identity(pool, &list)
        .await
        .map_err(database)?;
    let next_page_token = page.cut(&mut rows, |placed| vec![placed.row.id.clone()]);
    let workspaces = rows
        .into_iter()
        .map(|placed| workspace(placed.path.trim_end_matches('/').to_owned(), placed.row));
    Ok(pb::ListManagedIdentityWorkspacesResponse {
        workspaces: workspaces.collect(),
        next_page_token,
    })
}

/// The word for a kind; empty for both.
pub(super) fn kind(kind: i32) -> Result<&'static str, &'static str> {
    match pb::NamespaceKind::try_from(kind) {
        Ok(pb::NamespaceKind::Unspecified) => Ok(""),
        Ok(pb::NamespaceKind::Group) => Ok("group"),
        Ok(pb::NamespaceKind::Workspace) => Ok("workspace"),
        Err(_) => Err("must be a known kind, or not set"),
    }
}

/// A group or workspace at its path.
pub(super) fn child(path: String, row: NamespaceRow) -> pb::Child {
    let kind = if row.kind == "group" {
        pb::child::Kind::Group(group(path, row))
    } else {
        pb::child::Kind::Workspace(workspace(path, row))
    };
    pb::Child { kind: Some(kind) }
}

fn group(path: String, row: NamespaceRow) -> namespace::v1::Group {
    namespace::v1::Group {
        id: row.id,
        trn: format!("trn:group:{path}"),
        parent_id: row.parent_id,
        name: row.name,
        description: row.description,
        path,
        etag: request::etag(row.version.cast_unsigned()),
        create_time: Some(request::timestamp(row.created_at)),
        update_time: Some(request::timestamp(row.updated_at)),
    }
}

fn workspace(path: String, row: NamespaceRow) -> namespace::v1::Workspace {
    namespace::v1::Workspace {
        id: row.id,
        trn: format!("trn:workspace:{path}"),
        group_id: row.parent_id,
        name: row.name,
        description: row.description,
        path,
        max_job_duration: row
            .max_job_duration
            .map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        etag: request::etag(row.version.cast_unsigned()),
        create_time: Some(request::timestamp(row.created_at)),
        update_time: Some(request::timestamp(row.updated_at)),
    }
}
