package main

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

func requestFrame(streamID uint32, service, method string, timeout time.Duration, payload []byte) []byte {
	var request encoder
	request.text(1, service)
	request.text(2, method)
	request.message(3, payload)
	request.number(4, uint64(timeout))
	frame := make([]byte, headerLength)
	binary.BigEndian.PutUint32(frame, uint32(len(request)))
	binary.BigEndian.PutUint32(frame[4:], streamID)
	frame[8] = typeRequest
	return append(frame, request...)
}

// readAnswer returns the stream, status code and payload of a response.
func readAnswer(t *testing.T, connection io.Reader) (streamID uint32, code int, payload []byte) {
	t.Helper()
	header := make([]byte, headerLength)
	if _, err := io.ReadFull(connection, header); err != nil {
		t.Fatal(err)
	}
	wire := make([]byte, binary.BigEndian.Uint32(header))
	if _, err := io.ReadFull(connection, wire); err != nil {
		t.Fatal(err)
	}
	response, err := decodeMessage(wire)
	if err != nil {
		t.Fatal(err)
	}
	state, err := decodeMessage(response.bytes(1))
	if err != nil || header[8] != typeResponse {
		t.Fatalf("type %d, %v", header[8], err)
	}
	return binary.BigEndian.Uint32(header[4:]), int(state.number(1)), response.bytes(2)
}

func TestConnectionSurvivesWhatItRefuses(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	go serveConnection(server, services{"s.S": {
		"Echo": func(_ context.Context, request message) ([]byte, error) { return request.bytes(1), nil },
		"Wait": waitForever,
	}})
	// net.Pipe has no buffer: a write blocks until it is read.
	send := func(frame []byte) {
		go client.Write(frame)
	}
	expect := func(streamID uint32, code int, payload string) {
		t.Helper()
		if s, c, p := readAnswer(t, client); s != streamID || c != code || string(p) != payload {
			t.Fatalf("stream %d code %d %q, want stream %d code %d %q", s, c, p, streamID, code, payload)
		}
	}
	send(requestFrame(1, "s.S", "Echo", 0, []byte("\x0a\x02hi")))
	expect(1, 0, "hi")
	send(requestFrame(3, "s.S", "Unheard", 0, nil))
	expect(3, codeUnimplemented, "")
	send(requestFrame(5, "s.S", "Wait", time.Millisecond, nil))
	expect(5, codeDeadlineExceeded, "")
	send(requestFrame(6, "s.S", "Echo", 0, nil))
	expect(6, codeInvalidArgument, "")
	send(requestFrame(7, "s.S", "Echo", 0, []byte("\x0a\xffhi")))
	expect(7, codeInvalidArgument, "")
	send(requestFrame(9, "s.S", "Echo", 0, make([]byte, maxMessageLength)))
	expect(9, codeResourceExhausted, "")
	send(requestFrame(11, "s.S", "Echo", 0, []byte("\x0a\x05still")))
	expect(11, 0, "still")
}

func TestDecodingHostileMessages(t *testing.T) {
	for _, wire := range []string{"\x0a", "\x0a\x05abc", "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "\x08", "\x08\xff", "\x09abc", "\x0dabc", "\x0b", "\x02\x00", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"} {
		if m, err := decodeMessage([]byte(wire)); err == nil {
			t.Errorf("%x was read as %v", wire, m)
		}
	}
	if m, err := decodeMessage([]byte("\x09abcdefgh\x0dabcd\x10\x05")); err != nil || m.number(2) != 5 || m.has(1) {
		t.Errorf("fixed-width fields were not skipped: %v, %v", m, err)
	}
}
