//! Groups and workspaces right below a group.

use edge::hierarchy::Hierarchy;
use edge::layer::Call;
use edge::{request, status};
use model::Kind;
use proto::directory::v1 as pb;
use proto::namespace;
use sqlx::PgPool;
use tonic::Status;

use super::expect;
use crate::page::Page;
use crate::query::namespaces::{self, NamespaceRow};

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
    let page = Page::read(
        message.page_size,
        &message.page_token,
        &("children", &parent),
        1,
    )?;
    let after = page.after.as_ref().map_or("", |key| key[0].as_str());
    let rows = if call.place.is_none() && !call.caller.administrator {
        let acts_as = Hierarchy::new(pool.clone())
            .acts_as(&call.caller.principal)
            .await;
        let acts_as = acts_as.map_err(|error| status::database(&error))?;
        let acts_as: Vec<String> = acts_as.iter().map(ToString::to_string).collect();
        namespaces::top_level_of(pool, &acts_as, after, page.limit()).await
    } else {
        namespaces::children(pool, &parent, after, page.limit()).await
    };
    let mut rows = rows.map_err(|error| status::database(&error))?;
    let next_page_token = page.cut(&mut rows, |row| vec![row.name.clone()]);
    let children = rows.into_iter().map(|row| child(&path, row)).collect();
    Ok(pb::ListChildrenResponse {
        children,
        next_page_token,
    })
}

fn child(parent_path: &str, row: NamespaceRow) -> pb::Child {
    let path = if parent_path.is_empty() {
        row.name.clone()
    } else {
        format!("{parent_path}/{}", row.name)
    };
    let etag = request::etag(row.version.cast_unsigned());
    let (created, updated) = (
        request::timestamp(row.created_at),
        request::timestamp(row.updated_at),
    );
    let kind = if row.kind == "group" {
        pb::child::Kind::Group(namespace::v1::Group {
            id: row.id,
            trn: format!("trn:group:{path}"),
            parent_id: row.parent_id,
            name: row.name,
            description: row.description,
            path,
            etag,
            create_time: Some(created),
            update_time: Some(updated),
        })
    } else {
        pb::child::Kind::Workspace(namespace::v1::Workspace {
            id: row.id,
            trn: format!("trn:workspace:{path}"),
            group_id: row.parent_id,
            name: row.name,
            description: row.description,
            path,
            max_job_duration: row
                .max_job_duration
                .map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            etag,
            create_time: Some(created),
            update_time: Some(updated),
        })
    };
    pb::Child { kind: Some(kind) }
}
