package main

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestTheServerSendsWhatItsChecksumSays(t *testing.T) {
	sent := httptest.NewRecorder()
	sendBytes(sent, httptest.NewRequest(http.MethodGet, "/bytes?count=100000", nil))
	if sum := fmt.Sprintf("%x", sha256.Sum256(sent.Body.Bytes())); sent.Body.Len() != 100000 || sent.Header().Get("X-Sha256") != sum {
		t.Errorf("%d bytes, %s, announced %s", sent.Body.Len(), sum, sent.Header().Get("X-Sha256"))
	}
	refused := httptest.NewRecorder()
	if sendBytes(refused, httptest.NewRequest(http.MethodGet, "/bytes?count=-1", nil)); refused.Code != http.StatusBadRequest {
		t.Error(refused.Code)
	}
}
