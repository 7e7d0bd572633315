import test from 'ava';
import {parseListenAddress} from '../../src/core/listen-address.ts';

test('a port alone is on the loopback address; another address has to be named', t => {
	t.deepEqual(parseListenAddress('8003'), {host: '127.0.0.1', port: 8003});
	t.deepEqual(parseListenAddress('0.0.0.0:65535'), {host: '0.0.0.0', port: 65_535});
	t.deepEqual(parseListenAddress('[::]:8003'), {host: '::', port: 8003});
});

for (const text of [
	'0',
	'65536',
	':8003',
	'*:8003',
	'localhost:8003',
	'::1:8003',
	'[1.2.3.4]:80',
	'1.2.3:80',
	'8003 ',
	'',
]) {
	test(`${JSON.stringify(text)} is no address to listen at`, t => {
		t.is(parseListenAddress(text), undefined);
	});
}
