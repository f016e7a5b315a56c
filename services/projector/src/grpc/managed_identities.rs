//! Managed identities of groups and workspaces.

use std::sync::LazyLock;

use edge::hierarchy::Place;
use edge::layer::Call;
use edge::violations::Violations;
use edge::{request, status};
use model::Kind;
use prost::Message as _;
use prost_reflect::DescriptorPool;
use proto::directory::v1 as pb;
use proto::identity;
use sqlx::PgPool;
use tonic::Status;

use super::{expect, groups, keyed, path_of};
use crate::order::Order;
use crate::page::Page;
use crate::query::from_above::{self, List};
use crate::query::managed_identities::{
    self, AliasRow, IdentityRow, InheritedRow, Last, OfWorkspace, WorkspaceRow,
};
use crate::query::visible;

/// Name and id.
const KEYS: usize = 2;

/// Those that can be assigned in a group.
pub(super) async fn list(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListManagedIdentitiesRequest,
) -> Result<pb::ListManagedIdentitiesResponse, Status> {
    let place = call.place()?;
    let id = expect(place, Kind::Group, "group_id")?.to_string();
    let mut violations = Violations::default();
    let kind = violations.check("type", identity_type(&message.r#type));
    let order = violations.check("order_by", Order::read(&message.order_by));
    let (kind, order) = violations.finish(|| Some((kind?, order?)))?;
    let name_contains = message.name_contains.to_ascii_lowercase();
    let query = (
        "identities",
        &id,
        message.exclude_inherited,
        message.include_masked,
        (kind, &name_contains),
    );
    let page = List::page(order, (message.page_size, &message.page_token), &query)?;
    let list = List {
        places: &groups(place, message.exclude_inherited),
        narrowed_to: [kind, &name_contains],
        order,
    };
    let source = managed_identities::inherited(message.include_masked);
    let rows = from_above::list(pool, &source, &list, &page).await;
    let (rows, next_page_token) = rows.map_err(|error| status::database(&error))?;
    let managed_identities = rows
        .into_iter()
        .map(|found: InheritedRow| Ok(hidden(listed(place, found.row)?, found.masked_by)))
        .collect::<Result<_, Status>>()?;
    Ok(pb::ListManagedIdentitiesResponse {
        managed_identities,
        next_page_token,
    })
}

/// Those that a workspace's jobs can get, and those that are asked for beside them.
pub(super) async fn of_workspace(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListWorkspaceManagedIdentitiesRequest,
) -> Result<pb::ListWorkspaceManagedIdentitiesResponse, Status> {
    let place = call.place()?;
    let id = expect(place, Kind::Workspace, "workspace_id")?.to_string();
    let mut violations = Violations::default();
    let kind = violations.check("type", identity_type(&message.r#type));
    let order = violations.check("order_by", Order::read(&message.order_by));
    let (kind, order) = violations.finish(|| Some((kind?, order?)))?;
    let order = order.unwrap_or(Order::BY_NAME);
    let name_contains = message.name_contains.to_ascii_lowercase();
    let (unusable, unassigned) = (message.include_unusable, message.include_unassigned);
    let query = (
        "of workspace",
        &id,
        (unusable, unassigned),
        (kind, &name_contains),
        order,
    );
    let page = Page::read(message.page_size, &message.page_token, &query, KEYS)?;
    let after = last(&page, order)?;
    let database = |error| status::database(&error);
    // Only what is unusable may be out of the caller's sight.
    let visible = if unusable {
        visible::to(pool, call).await.map_err(database)?
    } else {
        vec![]
    };
    let nodes: Vec<String> = place.nodes.iter().map(|node| node.id.to_string()).collect();
    let list = OfWorkspace {
        workspace: &id,
        nodes: &nodes,
        visible: &visible,
        unusable,
        unassigned,
        kind,
        name_contains: &name_contains,
        order,
        after,
        limit: page.limit(),
    };
    let rows = managed_identities::of_workspace(pool, &list).await;
    let mut rows = rows.map_err(database)?;
    let next_page_token = page.cut(&mut rows, |found| key(order, &found.row, found.seen));
    let managed_identities = rows
        .into_iter()
        .map(|found| {
            if found.row.distance < 0 {
                return out_of_reach(found);
            }
            Ok(pb::DirectoryManagedIdentity {
                assigned: found.assigned,
                ..hidden(listed(place, found.row)?, found.masked_by)
            })
        })
        .collect::<Result<_, Status>>()?;
    Ok(pb::ListWorkspaceManagedIdentitiesResponse {
        managed_identities,
        next_page_token,
    })
}

/// What a page token says of an identity: nothing but the id of one that the caller does not see.
fn key(order: Order, row: &IdentityRow, seen: bool) -> Vec<String> {
    let key = if seen {
        order.key(&row.name, row.created_at, row.updated_at)
    } else {
        String::new()
    };
    vec![key, row.id.clone()]
}

/// What the page begins behind, by its token.
fn last(page: &Page, order: Order) -> Result<Option<Last<'_>>, Violations> {
    match page.after.as_deref() {
        Some([key, id]) if key.is_empty() => Ok(Some(Last { key: None, id })),
        _ => {
            let seen = keyed(page, order)?;
            Ok(seen.map(|(key, id)| Last { key: Some(key), id }))
        }
    }
}

/// The types that there are: the fields of a configuration.
static TYPES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let contract = DescriptorPool::decode(proto::DESCRIPTORS).ok();
    let configuration = contract
        .and_then(|contract| contract.get_message_by_name("tharsis.identity.v1.Configuration"));
    let fields = configuration.map(|message| {
        let names = message.fields().map(|field| field.name().to_owned());
        names.collect()
    });
    fields.unwrap_or_default()
});

/// A type to ask for; empty for all.
pub(super) fn identity_type(text: &str) -> Result<&str, String> {
    if text.is_empty() || TYPES.iter().any(|known| known == text) {
        Ok(text)
    } else {
        Err(format!("must be one of {}, or empty", TYPES.join(", ")))
    }
}

/// An identity at the path of its group.
pub(super) fn identity(
    group_path: &str,
    row: IdentityRow,
) -> Result<identity::v1::ManagedIdentity, Status> {
    let configuration = identity::v1::Configuration::decode(row.configuration.as_slice());
    let tokens = identity::v1::TokenSettings::decode(row.token_settings.as_slice());
    Ok(identity::v1::ManagedIdentity {
        trn: format!("trn:managed_identity:{group_path}/{}", row.name),
        id: row.id,
        alias_source_id: row.source_id.unwrap_or_default(),
        group_id: row.group_id,
        name: row.name,
        description: row.description,
        configuration: Some(configuration.map_err(|error| status::internal(&error))?),
        token_settings: Some(tokens.map_err(|error| status::internal(&error))?),
        etag: request::etag(row.version.cast_unsigned()),
        create_time: Some(request::timestamp(row.created_at)),
        update_time: Some(request::timestamp(row.updated_at)),
    })
}

/// An identity as seen from a place. `place` has the identity's group among its nodes: the query asked for those.
fn listed(place: &Place, row: IdentityRow) -> Result<pb::DirectoryManagedIdentity, Status> {
    let group_path = path_of(place, &row.group_id);
    let inherited = row.distance > 0;
    Ok(pb::DirectoryManagedIdentity {
        managed_identity: Some(identity(&group_path, row)?),
        inherited,
        group_path,
        ..Default::default()
    })
}

/// The same, if a mask hides it.
fn hidden(
    listed: pb::DirectoryManagedIdentity,
    mask: Option<String>,
) -> pb::DirectoryManagedIdentity {
    match mask {
        None => listed,
        Some(mask_id) => pb::DirectoryManagedIdentity {
            unusable_reason: pb::UnusableReason::Masked.into(),
            mask_id,
            ..listed
        },
    }
}

/// An identity that is assigned, but not above: its id, and more only where the caller may see its group.
fn out_of_reach(found: WorkspaceRow) -> Result<pb::DirectoryManagedIdentity, Status> {
    let (group_path, managed_identity) = as_seen(found.row, &found.path, found.seen)?;
    let reason = if found.gone {
        pb::UnusableReason::GroupDeleted
    } else {
        pb::UnusableReason::NotInherited
    };
    Ok(pb::DirectoryManagedIdentity {
        managed_identity: Some(managed_identity),
        inherited: true,
        group_path,
        unusable_reason: reason.into(),
        mask_id: String::new(),
        assigned: true,
    })
}

/// An identity and the path of its group, if the caller may see that; otherwise its id alone.
fn as_seen(
    row: IdentityRow,
    path: &str,
    seen: bool,
) -> Result<(String, identity::v1::ManagedIdentity), Status> {
    if seen {
        let path = path.trim_end_matches('/');
        return Ok((path.to_owned(), identity(path, row)?));
    }
    let id_only = identity::v1::ManagedIdentity {
        id: row.id,
        ..Default::default()
    };
    Ok((String::new(), id_only))
}

/// The aliases of an identity.
pub(super) async fn aliases(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListManagedIdentityAliasesRequest,
) -> Result<pb::ListManagedIdentityAliasesResponse, Status> {
    let id = expect(call.place()?, Kind::ManagedIdentity, "managed_identity_id")?.to_string();
    let order =
        Order::read(&message.order_by).map_err(|error| Violations::of("order_by", error))?;
    let order = order.unwrap_or(Order::BY_NAME);
    let query = ("aliases", &id, order);
    let page = Page::read(message.page_size, &message.page_token, &query, KEYS)?;
    let after = last(&page, order)?;
    let database = |error| status::database(&error);
    let visible = visible::to(pool, call).await.map_err(database)?;
    let rows = managed_identities::aliases(pool, &id, &visible, order, after, page.limit()).await;
    let mut rows = rows.map_err(database)?;
    let next_page_token = page.cut(&mut rows, |found| key(order, &found.row, found.seen));
    let aliases = rows.into_iter().map(|AliasRow { row, path, seen }| {
        let (group_path, managed_identity) = as_seen(row, &path, seen)?;
        Ok(pb::DirectoryManagedIdentity {
            managed_identity: Some(managed_identity),
            group_path,
            ..Default::default()
        })
    });
    Ok(pb::ListManagedIdentityAliasesResponse {
        aliases: aliases.collect::<Result<_, Status>>()?,
        next_page_token,
    })
}
