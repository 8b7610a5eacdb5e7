package rpc

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	watchwordv1 "github.com/watchword-auth/watchword/gen/watchword/v1"
	"github.com/watchword-auth/watchword/internal/password"
	"github.com/watchword-auth/watchword/internal/store"
	"github.com/watchword-auth/watchword/internal/user"
)

// Users serves UserService. The verifier lets only admins call UserService.
type Users struct {
	watchwordv1.UnimplementedUserServiceServer
	Users *user.Users
}

// CreateUser serves UserService/CreateUser.
func (s *Users) CreateUser(ctx context.Context, req *watchwordv1.CreateUserRequest) (*watchwordv1.CreateUserResponse, error) {
	var r reading
	name := field(&r, "username", user.ParseName, req.GetUsername())
	pw := field(&r, "password", password.Parse, req.GetPassword())
	roles := field(&r, "roles", user.ParseRoles, req.GetRoles())
	if r.err != nil {
		return nil, r.err
	}
	row, err := s.Users.Create(ctx, callerOf(ctx), name, roles, pw)
	return &watchwordv1.CreateUserResponse{User: userMessage(row)}, nameField("username", weakField("password", err))
}

// GetUser serves UserService/GetUser.
func (s *Users) GetUser(ctx context.Context, req *watchwordv1.GetUserRequest) (*watchwordv1.GetUserResponse, error) {
	var r reading
	var row *store.User
	switch key := req.GetKey().(type) {
	case *watchwordv1.GetUserRequest_Id:
		if id := field(&r, "id", requiredID, key.Id); r.err == nil {
			row, r.err = s.Users.Get(ctx, id)
		}
	case *watchwordv1.GetUserRequest_Username:
		if name := field(&r, "username", user.ParseName, key.Username); r.err == nil {
			row, r.err = s.Users.GetByName(ctx, name)
		}
	default:
		r.err = invalidField{"id", errors.New("one of id and username is required")}
	}
	return &watchwordv1.GetUserResponse{User: userMessage(row)}, r.err
}

// ListUsers serves UserService/ListUsers.
func (s *Users) ListUsers(ctx context.Context, req *watchwordv1.ListUsersRequest) (*watchwordv1.ListUsersResponse, error) {
	var r reading
	page := readPage(&r, req, "users")
	if r.err != nil {
		return nil, r.err
	}
	rows, next, err := s.Users.List(ctx, page.after, page.size)
	return &watchwordv1.ListUsersResponse{Users: messages(rows, userMessage), NextPageToken: page.token(next)}, err
}

// UpdateUser serves UserService/UpdateUser.
func (s *Users) UpdateUser(ctx context.Context, req *watchwordv1.UpdateUserRequest) (*watchwordv1.UpdateUserResponse, error) {
	var r reading
	id := field(&r, "user.id", requiredID, req.GetUser().GetId())
	change := readChange(&r, req)
	if r.err != nil {
		return nil, r.err
	}
	row, err := s.Users.Update(ctx, callerOf(ctx), id, change)
	return &watchwordv1.UpdateUserResponse{User: userMessage(row)}, nameField("user.username", err)
}

// readChange reads the fields that the update mask names (AIP-134). Without a mask
// readChange reads the fields that are set; with the mask "*", all fields. So only a
// mask can clear a field. A request that names no field is an error: the client has set a
// field to its zero value, such as disabled to false, and forgotten the mask.
func readChange(r *reading, req *watchwordv1.UpdateUserRequest) (change user.Change) {
	u := req.GetUser()
	for _, path := range field(r, "update_mask", maskPaths, req) {
		switch path {
		case "username":
			name := field(r, "user.username", user.ParseName, u.GetUsername())
			change.Name = &name
		case "roles":
			roles := field(r, "user.roles", user.ParseRoles, u.GetRoles())
			change.Roles = &roles
		case "disabled":
			disabled := u.GetDisabled()
			change.Disabled = &disabled
		}
	}
	return change
}

// maskPaths is the rule for update_mask, and returns the names of the fields to change.
// Only the fields that a client may change are known names.
func maskPaths(req *watchwordv1.UpdateUserRequest) ([]string, error) {
	all := []string{"username", "roles", "disabled"}
	paths := req.GetUpdateMask().GetPaths()
	switch {
	case len(paths) == 0:
		u := req.GetUser()
		set := map[string]bool{"username": u.GetUsername() != "", "roles": len(u.GetRoles()) > 0, "disabled": u.GetDisabled()}
		populated := slices.DeleteFunc(all, func(path string) bool { return !set[path] })
		if len(populated) == 0 {
			return nil, errors.New("names no field to change: to remove all roles or to enable a user, name roles or disabled")
		}
		return populated, nil
	case slices.Equal(paths, []string{"*"}):
		return all, nil
	case slices.Contains(paths, "*"):
		return nil, errors.New("must not name fields beside *")
	}
	for _, path := range paths {
		if !slices.Contains(all, path) {
			return nil, errors.New("names an unknown field: username, roles and disabled can be changed")
		}
	}
	return paths, nil
}

// DeleteUser serves UserService/DeleteUser.
func (s *Users) DeleteUser(ctx context.Context, req *watchwordv1.DeleteUserRequest) (*watchwordv1.DeleteUserResponse, error) {
	var r reading
	id := field(&r, "id", requiredID, req.GetId())
	if r.err != nil {
		return nil, r.err
	}
	return &watchwordv1.DeleteUserResponse{}, s.Users.Delete(ctx, callerOf(ctx), id)
}

// SetPassword serves UserService/SetPassword.
func (s *Users) SetPassword(ctx context.Context, req *watchwordv1.SetPasswordRequest) (*watchwordv1.SetPasswordResponse, error) {
	var r reading
	id := field(&r, "id", requiredID, req.GetId())
	pw := field(&r, "password", password.Parse, req.GetPassword())
	if r.err != nil {
		return nil, r.err
	}
	row, err := s.Users.SetPassword(ctx, callerOf(ctx), id, pw)
	return &watchwordv1.SetPasswordResponse{User: userMessage(row)}, weakField("password", err)
}

// userMessage converts a user, and returns nil for nil: handlers call userMessage
// before they look at the error. The password hash stays on the server.
func userMessage(row *store.User) *watchwordv1.User {
	if row == nil {
		return nil
	}
	return &watchwordv1.User{
		Id: row.ID, Username: row.Username, Roles: row.Roles, Disabled: row.Disabled,
		CreatedAt: timestamppb.New(row.CreatedAt), UpdatedAt: timestamppb.New(row.UpdatedAt),
	}
}
