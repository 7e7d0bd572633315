// A ttrpc server over TLS: frames and concurrent unary calls on each connection (containerd/ttrpc, PROTOCOL.md). It
// answers like the agent of kata, which uses ttrpc-rust: a success contains an empty status message.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	headerLength     = 10
	maxMessageLength = 4 << 20

	typeRequest  = 1
	typeResponse = 2
)

// gRPC status codes.
const (
	codeInvalidArgument   = 3
	codeDeadlineExceeded  = 4
	codePermissionDenied  = 7
	codeResourceExhausted = 8
	codeUnimplemented     = 12
	codeInternal          = 13
	codeUnavailable       = 14
)

type statusError struct {
	code    int
	message string
}

func (s *statusError) Error() string { return s.message }

func status(code int, format string, arguments ...any) error {
	return &statusError{code, fmt.Sprintf(format, arguments...)}
}

// method answers one unary call; ctx ends with the deadline of the call or with its connection.
type method func(ctx context.Context, request message) ([]byte, error)

// services: service name -> method name -> method.
type services map[string]map[string]method

func serveTLS(listener net.Listener, config *tls.Config, services services) error {
	for {
		socket, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer socket.Close()
			secured := tls.Server(socket, config)
			socket.SetDeadline(time.Now().Add(30 * time.Second))
			if err := secured.Handshake(); err != nil {
				if !errors.Is(err, io.EOF) { // not for a peer that only tested the port
					console("TLS handshake with %s: %v", socket.RemoteAddr(), err)
				}
				return
			}
			socket.SetDeadline(time.Time{})
			console("connection from %s", socket.RemoteAddr())
			err := serveConnection(secured, services)
			console("connection from %s ended: %v", socket.RemoteAddr(), err)
		}()
	}
}

// serveConnection returns when the peer has closed the connection or violated the protocol.
func serveConnection(peer io.ReadWriter, services services) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var writing sync.Mutex
	answer := func(streamID uint32, payload []byte, err error) {
		frame := responseFrame(streamID, payload, err)
		writing.Lock()
		defer writing.Unlock()
		peer.Write(frame) // the reader detects a broken connection
	}

	reader := bufio.NewReader(peer)
	header := make([]byte, headerLength)
	for {
		if _, err := io.ReadFull(reader, header); err != nil {
			return err
		}
		length, streamID, kind := binary.BigEndian.Uint32(header), binary.BigEndian.Uint32(header[4:]), header[8]
		if length > maxMessageLength {
			if _, err := io.CopyN(io.Discard, reader, int64(length)); err != nil {
				return err
			}
			answer(streamID, nil, status(codeResourceExhausted, "message length %d exceeds the maximum of %d", length, maxMessageLength))
			continue
		}
		wire := make([]byte, length)
		if _, err := io.ReadFull(reader, wire); err != nil {
			return err
		}
		switch {
		case kind != typeRequest:
			continue
		case streamID%2 == 0:
			answer(streamID, nil, status(codeInvalidArgument, "stream %d is even", streamID))
			continue
		}
		go func() {
			payload, err := call(ctx, services, wire)
			answer(streamID, payload, err)
		}()
	}
}

// call decodes a ttrpc Request: service 1, method 2, payload 3, timeout_nano 4.
func call(ctx context.Context, services services, wire []byte) ([]byte, error) {
	envelope, err := decodeMessage(wire)
	if err != nil {
		return nil, status(codeInvalidArgument, "%v", err)
	}
	method, known := services[envelope.text(1)][envelope.text(2)]
	if !known {
		return nil, status(codeUnimplemented, "/%s/%s is not supported", envelope.text(1), envelope.text(2))
	}
	request, err := decodeMessage(envelope.bytes(3))
	if err != nil {
		return nil, status(codeInvalidArgument, "%v", err)
	}
	if timeout := time.Duration(envelope.number(4)); timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return method(ctx, request)
}

func responseFrame(streamID uint32, payload []byte, err error) []byte {
	var response, state encoder
	if err != nil {
		code, known := codeInternal, (*statusError)(nil)
		if errors.As(err, &known) {
			code = known.code
		} else if errors.Is(err, context.DeadlineExceeded) {
			code = codeDeadlineExceeded
		}
		state.number(1, uint64(code))
		state.text(2, err.Error())
	}
	response.message(1, state)
	if len(payload) > 0 {
		response.message(2, payload)
	}
	if len(response) > maxMessageLength {
		return responseFrame(streamID, nil, status(codeResourceExhausted, "the answer of %d bytes exceeds the maximum of %d", len(response), maxMessageLength))
	}
	frame := make([]byte, headerLength, headerLength+len(response))
	binary.BigEndian.PutUint32(frame, uint32(len(response)))
	binary.BigEndian.PutUint32(frame[4:], streamID)
	frame[8] = typeResponse
	return append(frame, response...)
}
