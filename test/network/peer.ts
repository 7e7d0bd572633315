/**
 * Answers on TCP port 8080: `whoami` with the address that the question came from; `download N` with N bytes; anything
 * else is an upload up to its end, answered with its length and SHA-256.
 */
import {createHash} from 'node:crypto';
import {createServer} from 'node:net';
import {pattern} from './pattern.ts';

createServer({allowHalfOpen: true}, socket => {
	socket.on('error', () => socket.destroy());
	const hash = createHash('sha256');
	let length = 0;
	let isUpload = false;
	socket.on('data', (chunk: Buffer) => {
		const request = isUpload ? '' : chunk.subarray(0, 64).toString('latin1');
		if (request.startsWith('whoami')) {
			socket.end(`${String(socket.remoteAddress)}\n`);
		} else if (request.startsWith('download ')) {
			socket.end(pattern(Number(request.slice('download '.length))));
		} else {
			isUpload = true;
			length += chunk.length;
			hash.update(chunk);
		}
	});
	socket.on('end', () => {
		if (isUpload) {
			socket.end(`${length} ${hash.digest('hex')}\n`);
		}
	});
}).listen(8080, '0.0.0.0', () => console.log('listening'));
