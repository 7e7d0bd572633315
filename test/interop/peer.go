// The reference implementation of ttrpc as a peer for our tests: "peer serve SOCKET" serves until it is killed,
// "peer call SOCKET" plays a client, prints what came of each call as one JSON object, and exits.
//
// The service is kata's hypervisor.Hypervisor as far as the wire shows: its messages have one string at field 1,
// which is what StringValue looks like.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/gogo/protobuf/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const service = "hypervisor.Hypervisor"

func main() {
	if len(os.Args) != 3 {
		fail(fmt.Errorf("usage: peer serve|call SOCKET"))
	}

	var err error
	switch os.Args[1] {
	case "serve":
		err = serve(os.Args[2])
	case "call":
		err = call(os.Args[2])
	default:
		err = fmt.Errorf("no such mode: %s", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// answers is a method that takes and gives a string.
func answers(answer func(ctx context.Context, text string) (string, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(interface{}) error) (interface{}, error) {
		var request types.StringValue
		if err := unmarshal(&request); err != nil {
			return nil, err
		}
		text, err := answer(ctx, request.Value)
		if err != nil {
			return nil, err
		}
		return &types.StringValue{Value: text}, nil
	}
}

func serve(path string) error {
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}

	server.Register(service, map[string]ttrpc.Method{
		// Echoes; "size:N" is answered with N bytes.
		"Version": answers(func(_ context.Context, text string) (string, error) {
			if strings.HasPrefix(text, "size:") {
				size, err := strconv.Atoi(text[len("size:"):])
				return strings.Repeat("x", size), err
			}
			return text, nil
		}),
		// Tells of the request's metadata, and of its deadline to the minute: some of the time has passed.
		"CreateVM": answers(func(ctx context.Context, _ string) (string, error) {
			metadata, _ := ttrpc.GetMetadata(ctx)
			values, _ := metadata.Get("key")
			deadline, ok := ctx.Deadline()
			seconds := 0.0
			if ok {
				seconds = time.Until(deadline).Round(time.Minute).Seconds()
			}
			return fmt.Sprintf("%s %g", strings.Join(values, ","), seconds), nil
		}),
		// Waits until the call ends.
		"StartVM": answers(func(ctx context.Context, _ string) (string, error) {
			<-ctx.Done()
			return "", ctx.Err()
		}),
		"StopVM": answers(func(_ context.Context, text string) (string, error) {
			return "", status.Errorf(codes.NotFound, "no sandbox %s", text)
		}),
	})
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}

	fmt.Println("listening")
	return server.Serve(context.Background(), listener)
}

// outcome of a call, by google.rpc.Code.
type outcome struct {
	Code    uint32 `json:"code"`
	Message string `json:"message,omitempty"`
	Value   string `json:"value,omitempty"`
}

func call(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}

	client := ttrpc.NewClient(conn)
	defer client.Close()
	// What is left of it travels with each call, in as many bytes as it needs: of an hour, the same number for all of them.
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	one := func(ctx context.Context, service, method, text string) outcome {
		var response types.StringValue
		err := client.Call(ctx, service, method, &types.StringValue{Value: text}, &response)
		if err == nil {
			return outcome{Value: response.Value}
		}
		if err == context.DeadlineExceeded {
			return outcome{Code: uint32(codes.DeadlineExceeded)}
		}
		st, _ := status.FromError(err)
		return outcome{Code: uint32(st.Code()), Message: st.Message()}
	}

	outcomes := map[string]outcome{}
	outcomes["echo"] = one(ctx, service, "Version", "hello")
	outcomes["empty"] = one(ctx, service, "StopVM", "")
	outcomes["notFound"] = one(ctx, service, "StopVM", "unknown")
	outcomes["unknownMethod"] = one(ctx, service, "Other", "")
	outcomes["unknownService"] = one(ctx, "other.Service", "Version", "")

	var wait sync.WaitGroup
	var mutex sync.Mutex
	right := 0
	for index := 0; index < 200; index++ {
		wait.Add(1)
		go func(text string) {
			defer wait.Done()
			if one(ctx, service, "Version", text).Value == text {
				mutex.Lock()
				right++
				mutex.Unlock()
			}
		}(strconv.Itoa(index))
	}
	wait.Wait()
	outcomes["concurrent"] = outcome{Value: strconv.Itoa(right)}

	large := one(ctx, service, "Version", strings.Repeat("y", 4<<20-100))
	outcomes["large"] = outcome{Code: large.Code, Message: large.Message, Value: strconv.Itoa(len(large.Value))}
	outcomes["oversizedRequest"] = one(ctx, service, "Version", strings.Repeat("y", 5<<20))
	outcomes["oversizedResponse"] = one(ctx, service, "Version", "size:"+strconv.Itoa(5<<20))
	outcomes["metadata"] = one(ttrpc.WithMetadata(ctx, ttrpc.MD{"key": {"a", "b"}}), service, "CreateVM", "")

	short, cancelShort := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancelShort()
	// Either side's clock may be the first to end it, each with its own words.
	outcomes["deadline"] = outcome{Code: one(short, service, "StartVM", "").Code}
	outcomes["afterwards"] = one(ctx, service, "Version", "still here")
	return json.NewEncoder(os.Stdout).Encode(outcomes)
}
