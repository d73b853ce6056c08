// A real OpenID provider for the tests: `oidc-provider`, whose own pages ask for a name and a word and let anybody in.
// The name is the e-mail address. argv: port, redirect URI of the tunnel's server, domain of its tunnels with their port.
// SIGUSR2: it signs with other keys from then on, the old ones are gone.

import { createServer } from 'node:http';
import { generateKeyPairSync } from 'node:crypto';
import { Provider } from 'oidc-provider';

const [port, redirect, domain] = process.argv.slice(2);
const issuer = `http://localhost:${port}`;

const key = (kty, options, alg) => ({
  ...generateKeyPairSync(kty, options).privateKey.export({ format: 'jwk' }), use: 'sig', alg, kid: `${alg}-${Date.now()}-${Math.random()}`,
});

function make() {
  const provider = new Provider(issuer, {
    clients: [{
      client_id: 'tunneld', client_secret: 'a-secret-of-the-tests', redirect_uris: [redirect],
      grant_types: ['authorization_code'], response_types: ['code'],
    }],
    jwks: { keys: [key('rsa', { modulusLength: 2048 }, 'RS256'), key('ec', { namedCurve: 'P-256' }, 'ES256')] },
    cookies: { keys: ['a-cookie-key-of-the-tests'] },
    claims: { openid: ['sub'], email: ['email', 'email_verified'] },
    conformIdTokenClaims: false,
    pkce: { required: () => true },
    findAccount: (_, id) => ({
      accountId: id, claims: () => ({ sub: id, email: id, email_verified: !id.startsWith('unverified') }),
    }),
    extraTokenClaims: (_, token) => ({ email: token.accountId, email_verified: true }),
    features: {
      registration: { enabled: true },
      rpInitiatedLogout: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: (_, client, oneOf) => oneOf ?? undefined,
        useGrantedResource: () => true,
        getResourceServerInfo: (_, resource) => {
          if (!new URL(resource).host.endsWith(domain)) throw new Error(`no resource of ours: ${resource}`);
          return { scope: 'openid email', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: 600, jwt: { sign: { alg: 'ES256' } } };
        },
      },
    },
    ttl: { Session: 3600, Grant: 3600, Interaction: 600, AccessToken: 600, IdToken: 600, AuthorizationCode: 60, RefreshToken: 3600 },
  });
  provider.on('server_error', (_, error) => console.error(error));
  return provider.callback();
}

let serve = make();
createServer((request, response) => serve(request, response)).listen(Number(port), '127.0.0.1', () => console.log('ready'));
process.on('SIGUSR2', () => {
  serve = make();
  console.log('rotated');
});
