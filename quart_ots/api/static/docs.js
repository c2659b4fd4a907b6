// A file of its own, as the page's Content-Security-Policy runs no inline scripts.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null, // asks a public server otherwise
});
